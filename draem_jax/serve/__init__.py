"""A service that scores pictures over HTTP, and its page."""
