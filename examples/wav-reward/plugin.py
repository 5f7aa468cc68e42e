"""WavReward's reward for ms-swift: `--external_plugins plugin.py --reward_funcs wav_reward`.

The data has a column `solution` with the label, 1 to 5; every other column is taken and not looked at.
trl takes `wav_reward` itself: `GRPOTrainer(reward_funcs=wav_reward)`, once it takes audio.
"""

from qwench.ops.audio.reward import wav_reward

try:
    from swift.rewards import ORM, orms  # from version 4 on
except ImportError:
    from swift.plugin import ORM, orms


class WavReward(ORM):
    """R_a + R_f, see `wav_reward`."""

    def __call__(self, completions, solution=None, **columns):
        return wav_reward(completions, solution, **columns)


class ThoughtfulWavReward(ORM):
    """The same, where a closed thought before the score is part of the form."""

    def __call__(self, completions, solution=None, **columns):
        return wav_reward(completions, solution, **columns | {"think": True})


orms["wav_reward"] = WavReward
orms["wav_reward_think"] = ThoughtfulWavReward
