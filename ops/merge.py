"""The work behind `qwench merge`: one merge, its plan alone, or a sweep over many."""

from .merging.options import MergeOptions as MergeOptions
from .merging.run import dry_run as dry_run
from .merging.run import merge as merge
from .merging.sweep import sweep as sweep
