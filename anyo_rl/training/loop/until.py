"""Training that ends when it has been given its chance, not after a number of updates that somebody chose."""

from typing import Any

from transformers import TrainerCallback

from anyo_rl.evaluation.convergence import Rule, Training


class Until(TrainerCallback):
    """Stops at the first validation at which a rule is met; `max_steps` is the most there can be.

    Args:
        rule: when it is enough.
        rival_flops: what FLOPs are compared with.
    """

    def __init__(self, rule: Rule, rival_flops: float) -> None:
        self.rule = rule
        self.rival_flops = rival_flops

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Looks at all that was logged, by runs that were killed too."""
        if not self.rule.missing(Training.of(state.log_history), self.rival_flops):
            control.should_training_stop = True
