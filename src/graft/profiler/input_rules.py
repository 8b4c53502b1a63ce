"""Rules over how photos come to the model: processor, disk, network, loader processes."""

from __future__ import annotations

import numpy as np

from graft.diagnosis import Finding, Rule, Verdict
from graft.profiler.gpu_rules import FEW_SAMPLES
from graft.profiler.records import Column, Facts, Records
from graft.profiler.time_rules import priced

SHARE, GPU_IDLE, CPU_BUSY, IO_BUSY = 0.5, 10.0, 90.0, 50.0
FEW_WORKERS, MANY_WORKERS, WAITING = 0.7, 2.0, 0.1
SMALL_MB, FETCHING = 8.0, 0.2


def cpu_bottleneck(records: Records) -> Verdict:
    """A GPU that waits while a core is busy, most of the time."""
    gpu = records.gpus("percent")
    if gpu.shape[1] < FEW_SAMPLES:
        return Verdict(0)
    waits = (gpu.min(axis=0) < GPU_IDLE) & (_busiest_core(records) > CPU_BUSY)
    if waits.mean() <= SHARE:
        return Verdict(len(waits), int(waits.sum()))
    waited, facts = records.phases.get("data_wait", 0.0), records.facts
    cost = min(records.training_seconds * float(waits.mean()), waited)
    saved = min(cost, 0.0 if facts.cached else saved_by_workers(waited, float(records.step_seconds.sum()), facts))
    return Verdict(
        len(waits),
        int(waits.sum()),
        Finding(
            "cpu_bottleneck",
            f"in {waits.mean():.0%} of the samples a GPU was below {GPU_IDLE:g} % and a core above {CPU_BUSY:g} %",
            "the GPU waits for photos that the processor has not decoded yet",
            f"data.workers={facts.cores}",
            key="data.workers",
            gain=f"about {priced(saved, facts)} less" if saved else f"{priced(cost, facts)} of waiting at most",
            cost_s=cost,
            saved_s=saved or None,
        ),
    )


def io_bottleneck(records: Records) -> Verdict:
    """A processor that waits for disks most of the time, while a GPU, where there is one, is idle."""
    training = records.training
    if len(training.get("seconds", ())) < FEW_SAMPLES:
        return Verdict(0)
    waits = training["iowait_percent"] > IO_BUSY
    gpu = records.gpus("percent")
    if len(gpu):
        waits &= gpu.min(axis=0) < GPU_IDLE
    if waits.mean() <= SHARE:
        return Verdict(len(waits), int(waits.sum()))
    cost = records.training_seconds * float(waits.mean())
    # What a disk that never waits saves is what the processor idled for it, as far as steps waited for photos.
    idled = records.training_seconds * float(training["iowait_percent"].mean()) / 100
    saved = min(idled, records.phases.get("data_wait", 0.0))
    return Verdict(
        len(waits),
        int(waits.sum()),
        Finding(
            "io_bottleneck",
            f"in {waits.mean():.0%} of the samples the processor waited for a disk more than {IO_BUSY:g} % of the time",
            "a disk, or a file system of another machine, gives photos more slowly than they are used",
            "copy the photos to a local disk and name it in data.root; features=cached reads each photo once",
            key="data.root",
            gain=f"about {priced(saved, records.facts)} less" if saved else f"{priced(cost, records.facts)} at most",
            cost_s=cost,
            saved_s=saved or None,
        ),
    )


def dataloader(records: Records) -> Verdict:
    """Too few or too many loader processes, and steps that wait for them."""
    facts, steps = records.facts, records.step_seconds
    if facts.cached or not len(steps):
        return Verdict(0)
    waited, whole, ratio = float(records.steps["data_wait"].sum()), float(steps.sum()), facts.workers / facts.cores
    wrong_number = not FEW_WORKERS <= ratio <= MANY_WORKERS
    if wrong_number and waited > WAITING * whole:
        return Verdict(len(steps), 1, _loader_finding(facts, waited, whole))
    return Verdict(len(steps))


def saved_by_workers(waited: float, whole: float, facts: Facts) -> float:
    """Seconds less if as many processes as cores decode: beside the GPU, or on the cores that a step leaves idle."""
    if facts.workers > facts.cores:
        return 0.0
    decoding = waited * max(facts.workers, 1) / facts.cores
    if facts.device == "cuda":
        return max(whole - max(whole - waited, decoding), 0.0)
    return waited - decoding


def _loader_finding(facts: Facts, waited: float, whole: float) -> Finding:
    saved = saved_by_workers(waited, whole, facts)
    return Finding(
        "dataloader",
        f"data.workers={facts.workers} on {facts.cores} cores, and training waited for photos "
        f"{waited / whole:.0%} of {whole:.3g} s",
        "decoding takes its turn with computing, and leaves cores idle"
        if facts.workers < facts.cores
        else "more processes than cores take each other's time",
        f"data.workers={facts.cores}",
        key="data.workers",
        gain=f"about {priced(saved, facts)} less" if saved else "",
        cost_s=waited,
        saved_s=saved or None,
    )


def small_files_on_s3(records: Records) -> Verdict:
    """Photos that come from S3 one by one, and a run that waits for them."""
    facts, samples = records.facts, records.samples
    if not facts.remote or not samples or not records.seconds:
        return Verdict(0)
    photos = sum(facts.photos.values())
    fetched = float(np.sum(samples["net_mb_s"] * np.diff(samples["seconds"], prepend=0.0)))
    waited = records.phases.get("look", 0.0) + records.phases.get("data_wait", 0.0)
    small = 0 < fetched / max(photos, 1) < SMALL_MB
    if not small or waited < FETCHING * records.seconds:
        return Verdict(photos)
    # Local photos have still to be decoded, which keeps the processor as busy as it was in all.
    saved = waited * (1 - float(np.nanmean(samples["cpu_percent"])) / 100)
    change = "copy the photos to a local disk and name it in data.root"
    return Verdict(
        photos,
        1,
        Finding(
            "small_files_on_s3",
            f"{photos} photos came from S3 one by one, {fetched / max(photos, 1):.2g} MB each, and the run spent "
            f"{waited / records.seconds:.0%} of its time on getting and decoding them",
            "each request takes S3 a tenth of a second before the first byte, however small the file",
            change if facts.keeps_copies else f"data.cache_gb=20 keeps copies for the next epoch and run; or {change}",
            key="data.root" if facts.keeps_copies else "data.cache_gb",
            gain=f"about {priced(saved, facts)} less: so much of it the processor was idle",
            cost_s=waited,
            saved_s=saved,
        ),
    )


def _busiest_core(records: Records) -> Column:
    cores = [values for name, values in records.training.items() if name.startswith("cpu") and name != "cpu_percent"]
    busiest: Column = np.max(cores, axis=0)
    return busiest


RULES = (
    Rule(
        "cpu_bottleneck",
        "no GPU waits for the processor",
        cpu_bottleneck,
        {"share_of_samples": SHARE, "gpu_percent": GPU_IDLE, "cpu_percent": CPU_BUSY},
        "SageMaker's CPUBottleneck: threshold 50, gpu_threshold 10, cpu_threshold 90",
    ),
    Rule(
        "io_bottleneck",
        "nothing waits for a disk",
        io_bottleneck,
        {"share_of_samples": SHARE, "gpu_percent": GPU_IDLE, "iowait_percent": IO_BUSY},
        "SageMaker's IOBottleneck: threshold 50, gpu_threshold 10, io_threshold 50",
    ),
    Rule(
        "dataloader",
        "photos are decoded beside the training",
        dataloader,
        {"workers_per_core_least": FEW_WORKERS, "workers_per_core_most": MANY_WORKERS, "share_of_steps": WAITING},
        "SageMaker's Dataloader: min_threshold 70, max_threshold 200 (percent of the cores); graft's own: only where "
        "steps wait for a tenth of their time",
    ),
    Rule(
        "small_files_on_s3",
        "no run waits for single photos from S3",
        small_files_on_s3,
        {"megabytes": SMALL_MB, "share_of_run": FETCHING},
        "S3's performance guidelines: requests of 8 to 16 MB, 100 to 200 ms to the first byte of small objects",
    ),
)
