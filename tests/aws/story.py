"""`make story`: from photos to an answering endpoint and back to nothing, on the local AWS, with no account."""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.aws.account import ACCOUNT, KEYS
from tests.aws.server import BUCKET, ROLE, LocalAws, running_aws
from tests.conftest import REAL_DATA, TOOLKIT
from tests.pictures import draw_folder

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = f"s3://{BUCKET}/photos"
ACCOUNT_KEYS = (f"launcher.role=arn:aws:iam::{ACCOUNT}:role/{ROLE}", f"launcher.bucket={BUCKET}")
# Of drawn photos: a network that learns them without weights.
DRAWN = ("model=small", "optim.lr=0.01", "data.batch_size=8")
ASKED = 3  # photos, each of another class


class Broken(Exception):
    """A step that did not do what it is there for."""


@dataclass(frozen=True)
class Stage:
    """Where the story plays.

    Attributes:
        aws: the local AWS.
        folder: of this machine, where runs are fetched to.
        photos: of this machine.
        model: overrides of the model.
    """

    aws: LocalAws
    folder: Path
    photos: Path
    model: tuple[str, ...]

    def run(self, *command: str) -> str:
        """Run a command of graft's as a person would, showing it and what it prints; returns what it printed."""
        print(f"\n$ python {shlex.join(command)}", flush=True)
        begun, said = time.perf_counter(), []
        script = [str(ROOT / command[0])] if command[0].endswith(".py") else [command[0]]
        with subprocess.Popen(
            [sys.executable, *script, *command[1:]],
            cwd=self.folder,
            env={**os.environ, **KEYS, "AWS_ENDPOINT_URL": self.aws.url, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                said.append(line)
        print(f"({time.perf_counter() - begun:.0f} s)", flush=True)
        if process.returncode:
            raise Broken(f"it ended with code {process.returncode}")
        return "".join(said)

    def job(self, script: str, *overrides: str) -> str:
        """Run train.py or tune.py as a job on the photos in S3."""
        # The machines of a local AWS have no GPU.
        place = ("trainer=sagemaker_gpu", "trainer.accelerator=cpu", "data=folder", f"data.root={PHOTOS}")
        count = sum(path.is_file() for split in self.photos.iterdir() for path in split.glob("*/*"))
        return self.run(script, *place, f"data.images={count}", *ACCOUNT_KEYS, *self.model, *overrides)


def tell(stage: Stage, trials: int) -> None:
    """Upload, tune in both backends, train the best, deploy it, ask it, delete it.

    Args:
        stage: where.
        trials: of each search; 0 leaves the searches out.

    Raises:
        Broken: a command failed, or said something else than it must.
    """
    stage.run("-m", "graft.data", "upload", str(stage.photos), PHOTOS)
    best = []
    if trials:
        # The original's three hyperparameters and 8 trials.
        search = ("search=original", f"search.trials={trials}")
        stage.job("tune.py", *search, "search.backend=one_job", "run_dir=runs/one_job")
        stage.job("tune.py", *search, "search.backend=tuning_job", "run_dir=runs/tuning_job")
        best = ["overrides_from=runs/one_job/best.yaml"]
    stage.job("train.py", *best, "run_dir=runs/best")
    stage.run("-m", "serve", "deploy", "run_dir=runs/best", "endpoint=story", *ACCOUNT_KEYS, "serve.ttl=none")
    ask(stage)
    if "story" not in stage.run("-m", "serve", "list"):
        raise Broken("the endpoint is not listed")
    stage.run("-m", "serve", "delete", "endpoint=story")
    if "nothing of graft is billed by the hour in" not in stage.run("-m", "serve", "list"):
        raise Broken("something is listed after the endpoint was deleted")


def ask(stage: Stage) -> None:
    """Ask the endpoint for photos of the test split, each of another class, that the run's own model gets right.

    Raises:
        Broken: there are fewer than ASKED of them, or the endpoint tells one wrong.
    """
    photos = right_photos(stage.folder / "runs" / "best", stage.photos)[:ASKED]
    if len(photos) < ASKED:
        raise Broken(f"the run gets photos of {len(photos)} classes right; {ASKED} are to be asked")
    for photo, label in photos:
        # The path of the photo holds its label too: what counts is the first prediction.
        answer = stage.run("-m", "serve", "predict", str(photo), "endpoint=story", "--json").splitlines()[-1]
        told = json.loads(answer)["predictions"][0]["label"]
        if told != label:
            raise Broken(f"{photo} is of {label}; the endpoint says {told}")


def right_photos(run_dir: Path, photos: Path) -> list[tuple[Path, str]]:
    """Photos of test with their labels that the run itself tells right, one of each class."""
    with (run_dir / "predictions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test" and row["label"] == row["class_1"]]
    # The paths are those of the job's machine: split, class and file are the same here.
    found = {row["label"]: photos.joinpath(*Path(row["path"]).parts[-3:]) for row in rows}
    return [(photo, label) for label, photo in found.items()]


def chosen(source: Path, classes: int, folder: Path) -> Path:
    """The first classes of a folder of photos, by links."""
    for split in ("train", "valid", "test"):
        for place in sorted((source / split).iterdir())[:classes]:
            (folder / split).mkdir(parents=True, exist_ok=True)
            (folder / split / place.name).symlink_to(place, target_is_directory=True)
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """Tell the story, with the dogs where they are and with drawn photos where not."""
    parser = argparse.ArgumentParser(prog="make story", description=__doc__)
    parser.add_argument("--data", type=Path, default=REAL_DATA / "dogs", help="photos with train/, valid/ and test/")
    parser.add_argument("--classes", type=int, default=40, help="how many of its classes, the first ones")
    parser.add_argument("--trials", type=int, default=8, help="of each search; 0 leaves them out")
    arguments = parser.parse_args(argv)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="graft-story-") as name, running_aws(Path(name) / "aws", TOOLKIT) as aws:
        folder = Path(name)
        model: tuple[str, ...] = DRAWN
        if arguments.data.is_dir():
            photos = chosen(arguments.data.resolve(), arguments.classes, folder / "photos")
            weights = REAL_DATA / "weights" / "mobilenet_v2.pth"
            model = ("model.backbone=mobilenet_v2", f"model.weights={weights}") if weights.exists() else ()
        else:
            print(f"{arguments.data} is not there: with drawn photos")
            photos = draw_folder(folder / "photos", train=20, valid=8, test=8)
        tell(Stage(aws, folder, photos, model), arguments.trials)
    print(f"\ntold in {(time.perf_counter() - begun) / 60:.1f} minutes; nothing of it is left")


if __name__ == "__main__":
    main()
