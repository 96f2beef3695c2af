"""The built-in demo: no download, no file but the package, a few minutes.

python -m draem_jax.main --config=configs/demo.py --workdir=runs/demo
"""

from draem_jax.configs.demo import get_config

__all__ = ['get_config']
