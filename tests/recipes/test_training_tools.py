"""What the training stages of the compact models share: a cut run goes on as if it had not been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json
import sys
from pathlib import Path

import torch
from training_tools import Trainer

folder = Path(sys.argv[1])
data = torch.randn(40, 8, 3, generator=torch.Generator().manual_seed(0))


def begin(name):
    torch.manual_seed(1)
    learned = torch.nn.Linear(3, 2)
    first = learned.weight[0].detach().clone()

    @torch.no_grad()
    def hold():
        learned.weight[0] = first

    # so long a budget that the clock moves nothing
    return Trainer(learned, folder / name, peak=0.1, minutes=1e9, averaged=0.9, hold=hold), first


def go_on(trainer, steps):
    for _ in range(steps):
        trainer.update((trainer.learned(data[trainer.step]) - data[trainer.step, :, :2]).square().mean())


whole, first = begin("whole.pt")
start = whole.learned.weight.detach().clone()
go_on(whole, 30)
cut, _ = begin("cut.pt")
go_on(cut, 13)
cut.save()
go_on(cut, 4)  # lost with the cut
resumed, _ = begin("cut.pt")
steps = resumed.step
go_on(resumed, 17)

says = {"steps": [steps, resumed.step]}
ends = zip(whole.learned.parameters(), resumed.learned.parameters())
says["apart"] = max(float((a - b).detach().abs().max()) for a, b in ends)
says["averages_apart"] = max(float((whole.ema.state[k] - resumed.ema.state[k]).abs().max()) for k in whole.ema.state)
says["held"] = float((whole.learned.weight[0] - first).abs().max() + (whole.ema.state["weight"][0] - first).abs().max())
says["moved"] = float((whole.learned.weight - start)[1].abs().min())
says["spent"] = resumed.minutes > cut.clock.spent_before / 60
print(json.dumps(says))
"""


def test_a_cut_run_goes_on_to_the_same_weights(tmp_path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "recipes" / "compact"), str(root)])}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    says = json.loads(done.stdout.splitlines()[-1])
    assert says["steps"] == [13, 30] and says["spent"]
    assert says["apart"] < 1e-6 and says["averages_apart"] < 1e-6
    assert says["held"] < 1e-6 and says["moved"] > 1e-3
