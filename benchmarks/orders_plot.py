"""Draws NDCG@10 over training FLOPs in the world of orders, of the tables that docs/comparison.md has.

    python benchmarks/orders_plot.py --svg docs/orders.svg

A row of a table there is a stage, its FLOPs (one number, or one of each seed) and its mean; the plot has the mean of
the FLOPs. Rows of other tables, and rows without FLOPs, are passed over.
"""

import argparse
import re
from pathlib import Path

from anyo_rl.evaluation.report.plots import cost_plot, standalone

PAGE = Path(__file__).resolve().parents[1] / "docs" / "comparison.md"
NUMBER = r"\.\d{3}"
ROW = re.compile(rf"\| `(\w+)`[^|]* \| ([\d, ]+) \|.*?\|\s*\**({NUMBER})\**\s*\[")
ORACLE = re.compile(rf"\| oracle \|.*?({NUMBER})")


def points(page: str) -> dict[str, tuple[float, float]]:
    """FLOPs (10^12) and NDCG@10 of each stage, the best first.

    >>> points("| `sft` | 11, 13 | .388 | .357 | .400 [.378, .421] | 87% |")
    {'sft': (12.0, 0.4)}
    """
    found = {}
    for stage, flops, mean in ROW.findall(page):
        each = [float(number) for number in flops.split(",")]
        found[stage] = (sum(each) / len(each), float(mean))
    return dict(sorted(found.items(), key=lambda row: -row[1][1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--svg", type=Path, required=True, help="the file that is written")
    args = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    oracle = ORACLE.search(page)
    if oracle is None:
        raise SystemExit(f"{PAGE} has no row of the oracle: expected `| oracle | … | .535 | … |`")
    series = {stage: [point] for stage, point in points(page).items()}
    drawn = cost_plot(series, "orders", "training FLOPs, 10^12", "test NDCG@10", float(oracle[1]))
    args.svg.write_text(standalone(drawn), encoding="utf-8")


if __name__ == "__main__":
    main()
