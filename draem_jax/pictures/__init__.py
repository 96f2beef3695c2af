"""Pictures: panels, sheets and plots."""
