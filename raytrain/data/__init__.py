"""What goes in: manifest -> epoch order -> CPU stages -> ready batches -> rank.

The public names stand in `__init__.pyi` and are loaded on first use: a preprocessing worker imports
`raytrain.data.worker.task` and nothing that it does not need.
"""

from __future__ import annotations

from raytrain import loaded_on_use

__getattr__, __dir__, __all__ = loaded_on_use(__name__, __file__)
