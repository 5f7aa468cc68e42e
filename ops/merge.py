"""The work behind `qwench merge`: one merge, its plan alone, or a sweep over many."""

from .merge_options import MergeOptions as MergeOptions
from .merge_run import dry_run as dry_run
from .merge_run import merge as merge
from .merge_sweep import sweep as sweep
