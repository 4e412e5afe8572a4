"""Settings of a teacher that is made where no path is given."""

from dataclasses import dataclass, field

from anyo_rl.run.settings import Bounds


@dataclass
class ScratchArguments:
    """How large a teacher made from scratch is."""

    tiny_hidden_size: int = field(
        default=128, metadata={"bounds": Bounds(8, 65_536), "help": "Width of a teacher made from scratch."}
    )
    tiny_layers: int = field(
        default=4, metadata={"bounds": Bounds(1, 1000), "help": "Layers of a teacher made from scratch."}
    )
    tiny_vocab_size: int = field(
        default=600, metadata={"bounds": Bounds(1, 10**6), "help": "Tokens of a tokenizer made from scratch."}
    )
