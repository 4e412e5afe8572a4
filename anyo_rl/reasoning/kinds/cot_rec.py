"""`cot_rec`: a step that says what the user is like, a step that says what is wanted now, then the item.

    Profile: tea, oak
    Intention: mug, oak -> mug oak 2

After CoT-Rec (2025), in which an LLM writes profile and intention for another model to use; here the teacher that
names the item writes both, and they are trained by the rank that they lead to.
"""

from collections import Counter
from types import SimpleNamespace

from anyo_rl.reasoning.kinds.kind import Asked, Hindsight, Kind, Steps, clean_steps
from anyo_rl.reasoning.prompts import Words
from anyo_rl.run.settings import Bounds, check_bounds

NAMES = (PROFILE, INTENTION) = ("Profile", "Intention")
WORDS = Words(task="Write two short lines, Profile: and Intention:, then name one item.")


def cot_rec(most: int = 3) -> Kind:
    """Makes the kind.

    Args:
        most: attributes that a step of a rationale names, at most.

    Raises:
        UsageError: the number is out of its range.
    """
    check_bounds(SimpleNamespace(most=most), {"most": Bounds(1, 1000)}, "kind_settings of cot_rec: ")

    def write(asked: Asked, hindsight: Hindsight) -> Steps:
        attributes = asked.sources.attributes
        counts = Counter(value for item in reversed(asked.history) for value in attributes[item])
        likes = ", ".join(value for value, _ in counts.most_common(most))
        wants = hindsight.intent or ", ".join(attributes[hindsight.target_id][:most])
        return clean_steps([f"{PROFILE}: {likes or 'nothing known'}", f"{INTENTION}: {wants or 'anything'}"])

    return Kind("cot_rec", words=WORDS, write=write, step_names=NAMES)
