"""TRL's parser for our dataclasses, whose fields say more of a setting than argparse takes."""

import copy
import dataclasses
from argparse import ArgumentParser
from types import MappingProxyType

from trl import TrlParser

OURS = {"free"}  # words of metadata that are not argparse's; read by `anyo_rl.run.folder`


class SettingsParser(TrlParser):
    """Keeps from argparse what in a field's metadata is ours."""

    @staticmethod
    def _parse_dataclass_field(parser: ArgumentParser, field: dataclasses.Field) -> None:
        shown = copy.copy(field)
        shown.metadata = MappingProxyType({name: value for name, value in field.metadata.items() if name not in OURS})
        TrlParser._parse_dataclass_field(parser, shown)
        field.type = shown.type  # without its `None`, as the parser leaves it
