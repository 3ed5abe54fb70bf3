"""Compare this project's models with published numbers, tensor by tensor.

    python -m scripts.check_parity FOLDER [--model vdit]

``FOLDER`` holds a frozen stack (``pretrained/``) and, per model, fixtures and a checkpoint in the authors'
layout. Prints a table and exits with 1 on any miss.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from util.errors import Parser, UserError, run_cli

if TYPE_CHECKING:
    from scripts.parity import Row

MODELS = ("vdit", "hcd")


def main() -> int:
    """Run the comparison; the status is 1 where anything differs."""
    parser = Parser(description="Compare the models with published numbers, tensor by tensor.")
    parser.add_argument("folder", type=Path, help="fixtures: pretrained/, vdit/, hcd/")
    parser.add_argument("--model", choices=MODELS, action="append", help="limit the check to this model")
    args = parser.parse_args()
    if not args.folder.is_dir():
        raise UserError(f"the folder of fixtures {args.folder} does not exist")
    wanted = tuple(args.model or (m for m in MODELS if (args.folder / m).is_dir()))
    if not wanted:
        raise UserError(f"{args.folder} holds no fixtures: it should have a folder {' or '.join(MODELS)}")
    import torch  # both only here: they take seconds

    from scripts.parity import check_evaluation, check_training, find_fixtures, fixture_model

    failures = 0
    torch.manual_seed(0)
    for fixture in find_fixtures(args.folder, wanted):
        model, cfg = fixture_model(fixture)
        rows = check_evaluation(model, fixture) + check_training(model, cfg, fixture)
        print(f"\n{fixture.name}  ({fixture.spec['mode']})")
        print_table(rows)
        failures += sum(not row.ok for row in rows)
        print(f"{sum(row.ok for row in rows)} of {len(rows)} agree")
    if failures:
        print(f"\n{failures} do not agree")
    return 1 if failures else 0


def print_table(rows: list[Row]) -> None:
    """Name, largest absolute and relative difference, tolerance, verdict."""
    width = max(len(row.name) for row in rows)
    print(f"{'tensor':<{width}}  {'absolute':>9}  {'relative':>9}  {'tolerance':>9}  ok")
    for row in rows:
        verdict = "yes" if row.ok else "NO"
        print(f"{row.name:<{width}}  {row.absolute:9.2e}  {row.relative:9.2e}  {row.tolerance:9.0e}  {verdict}")


if __name__ == "__main__":
    run_cli(main)
