"""The command `lightning`, also as `python -m asr_lightning`.

What it imports takes 13 s of processor time, measured on two cores beside other work: torch 2.9, torch._dynamo 4.1 (by
lightning.fabric.wrappers), scipy.signal 1.9 and matplotlib 1.3 (both by torchmetrics), torchmetrics and Lightning 1.0,
wandb 0.9, numpy 0.2, jsonargparse 0.1, this project 0.3; the options of all commands take 0.3. Nearly all of it is
imported by Lightning before any option is read; the list of commands needs none of it.
"""

import os
import sys

from asr_lightning.ablations import end_with_ablation
from asr_lightning.asr import add_current_folder, interrupted_status, terminable

HELP = """usage: lightning COMMAND --config EXPERIMENT.yaml [--KEY VALUE ...]

Train and test a network: all keys of the experiment may be given another value, as --trainer.max_epochs 3.

commands:
  fit       train; with --ckpt_path last it goes on where it was stopped
  validate  measure error rates on the validation subsets
  test      measure error rates on the test subsets, as --ckpt_path runs/x/checkpoints/last.ckpt
  predict   write what a network says of subsets

`lightning COMMAND --help` lists the keys of trainer and data, `lightning fit --model.help CLASS` those of a class.
`asr` does everything around it: `asr --help`."""
STOPPED = "stopped; `lightning fit` goes on from its last checkpoint with --ckpt_path last"


def main() -> None:
    """Run the command line; the list of commands is printed without an import of torch, which takes seconds.

    Ctrl-C ends it with status 130, SIGTERM with 143 and SIGHUP with 129, wherever they come. A training handles them
    itself, see `SaveWhenStopped`.
    """
    add_current_folder()
    if not sys.argv[1:] or sys.argv[1] in ("-h", "--help"):
        print(HELP)
        return
    end_with_ablation()
    try:
        with terminable():
            from asr_lightning import cli

            cli.main()
    except (KeyboardInterrupt, SystemExit) as error:
        interrupt = error.__context__ if isinstance(error, SystemExit) else error  # Lightning exits with status 1
        if not isinstance(interrupt, KeyboardInterrupt):
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(STOPPED, file=sys.stderr)
        sys.exit(interrupted_status(interrupt))


if __name__ == "__main__":
    main()
