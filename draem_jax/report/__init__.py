"""What a person reads and looks at of a run: results, pictures, HTML."""

from draem_jax.report.category import write_report
from draem_jax.report.comparison import write_comparison

__all__ = ('write_comparison', 'write_report')
