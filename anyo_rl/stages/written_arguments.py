"""Settings of answers that a teacher writes."""

from dataclasses import dataclass, field

from anyo_rl.encoders.titles import ItemEncoder
from anyo_rl.evaluation.stages import Writing
from anyo_rl.evidence.reweighing import ReweighBy


@dataclass
class WrittenArguments:
    """How what a teacher writes is grounded in the catalog."""

    written: Writing | None = field(
        default=None,
        metadata={
            "help": "Evaluate teachers also by the item they write, in rows of their own: catalog holds it to the "
            "catalog; free lets it be any text, as BIGRec does; none. If unset, catalog where teachers learned to "
            "write (by sft_item_loss tokens, or the ranker of GRPO).",
            "free": True,
        },
    )
    item_encoder: ItemEncoder = field(
        default="teacher", metadata={"help": "What embeds titles for the embedding ranker: teacher, minilm."}
    )
    reweigh_by: ReweighBy | None = field(
        default=None,
        metadata={
            "help": "What the embedding ranker's distances are reweighed by (BIGRec's gamma): popularity, item_knn, "
            "ease, sasrec, or the evidence of --evidence; distance alone if unset."
        },
    )
