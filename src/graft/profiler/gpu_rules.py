"""Rules over the GPUs of a machine, while the run trained; a machine without one gives them nothing to judge."""

from __future__ import annotations

import numpy as np

from graft.diagnosis import Finding, Rule, Verdict
from graft.profiler.records import Records
from graft.profiler.time_rules import priced

FEW_SAMPLES = 10  # five seconds
P95, P5 = 70.0, 10.0
NEVER = 1.0
MEMORY_INCREASE, WINDOW, MEMORY_PATIENCE = 5.0, 10, 20
IMBALANCE = 0.2
COMPUTING = ("forward", "backward", "optimiser", "evaluation_forward", "final_evaluation")


def gpu_never_used(records: Records) -> Verdict:
    """A GPU that did nothing while the CPU computed."""
    busy = records.gpus("percent")
    if busy.shape[1] < FEW_SAMPLES:
        return Verdict(0)
    if np.percentile(busy, 95, axis=1).max() >= NEVER:
        return Verdict(busy.size)
    cost = sum(records.phases.get(phase, 0.0) for phase in COMPUTING)
    where = (
        "the model was on the CPU" if records.facts.device == "cpu" else "the model was on a GPU, but computed on none"
    )
    return Verdict(
        busy.size,
        int(np.count_nonzero(busy < NEVER)),
        Finding(
            "gpu_never_used",
            f"the GPU stood at {np.percentile(busy, 95):.3g} % (95th percentile): {where}",
            "the machine is paid for its GPU; larger batches or more machines leave it as idle as it is",
            "trainer=gpu",
            key="trainer.accelerator",
            gain=f"of the {priced(cost, records.facts)} that the CPU computed, what a GPU does not take; "
            "`python -m graft.profiler apply` measures it",
            cost_s=cost,
        ),
    )


def low_gpu_utilization(records: Records) -> Verdict:
    """A GPU that is little used, or in bursts."""
    busy = records.gpus("percent")
    if busy.shape[1] < FEW_SAMPLES:
        return Verdict(0)
    p95, p5 = np.percentile(busy, 95, axis=1).min(), np.percentile(busy, 5, axis=1).min()
    if p95 >= P95 and p5 >= P5:
        return Verdict(busy.size)
    cost = records.training_seconds * (1 - float(busy.mean()) / 100)
    return Verdict(
        busy.size,
        int(np.count_nonzero(busy < P95)),
        Finding(
            "low_gpu_utilization",
            f"the GPU's utilisation has a 95th percentile of {p95:.3g} % and a 5th of {p5:.3g} %",
            "a GPU that waits for batches or works on small ones is paid for and not used",
            "raise data.workers, then data.batch_size; or take a smaller GPU",
            key="data.workers",
            gain=f"{priced(cost, records.facts)} at most",
            cost_s=cost,
        ),
    )


def batch_size(records: Records) -> Verdict:
    """Processor, GPU and its memory all have room: a batch could be larger."""
    busy, memory = records.gpus("percent"), records.gpus("memory_percent")
    if busy.shape[1] < FEW_SAMPLES or not len(memory):  # those that share the processor's memory do not tell it
        return Verdict(0)
    p95 = {
        "the processor": float(np.percentile(records.training["cpu_percent"], 95)),
        "the GPU": float(np.percentile(busy, 95)),
        "its memory": float(np.percentile(memory, 95)),
    }
    if max(p95.values()) >= P95:
        return Verdict(busy.size)
    saved = records.phases.get("other", 0.0) / 2
    size = records.facts.batch_size
    return Verdict(
        busy.size,
        1,
        Finding(
            "batch_size",
            ", ".join(f"{name} is at {value:.3g} %" for name, value in p95.items()) + " (95th percentiles)",
            "what a step costs beside its photos is paid for each step, and there is room for more of them",
            f"data.batch_size={2 * size}",
            key="data.batch_size",
            gain=f"half as many steps spend {priced(saved, records.facts)} less between them",
            cost_s=2 * saved,
            saved_s=saved,
        ),
    )


def gpu_memory_increase(records: Records) -> Verdict:
    """Memory of a GPU that goes on growing after the first steps."""
    memory = records.gpus("memory_percent")[:, MEMORY_PATIENCE:]
    if memory.shape[1] < 2 * WINDOW:
        return Verdict(0)
    means = np.lib.stride_tricks.sliding_window_view(memory, WINDOW, axis=1).mean(axis=2)
    growth = means[:, -1] - means[:, 0]
    if growth.max() <= MEMORY_INCREASE:
        return Verdict(means.size)
    return Verdict(
        means.size,
        1,
        Finding(
            "gpu_memory_increase",
            f"the GPU's memory grew from {means[growth.argmax(), 0]:.3g} % to {means[growth.argmax(), -1]:.3g} % "
            "while the run trained",
            "steps of one size need the same memory: what is kept from step to step ends in an out-of-memory error",
            "keep no tensors with gradients in lists or logs; a lower data.batch_size only puts the end off",
            key="data.batch_size",
        ),
    )


def load_balancing(records: Records) -> Verdict:
    """Several GPUs of which some work less."""
    busy = records.gpus("percent")
    if len(busy) < 2 or busy.shape[1] < FEW_SAMPLES:
        return Verdict(0)
    means = busy.mean(axis=1)
    if means.max() <= 0 or (means.max() - means.min()) / means.max() <= IMBALANCE:
        return Verdict(busy.size)
    cost = records.training_seconds * float(1 - means.mean() / means.max())
    return Verdict(
        busy.size,
        1,
        Finding(
            "load_balancing",
            f"the busiest GPU is at {means.max():.3g} % in the mean, the idlest at {means.min():.3g} %",
            "all processes wait for the slowest one in every step, and a GPU that none uses is paid for",
            f"trainer.devices={len(busy)}, with a data.batch_size that is a multiple of it",
            key="trainer.devices",
            gain=f"{priced(cost, records.facts)} at most",
            cost_s=cost,
        ),
    )


RULES = (
    Rule(
        "gpu_never_used",
        "a GPU that is there does something",
        gpu_never_used,
        {"utilization_p95": NEVER},
        "graft's own: NVML tells whole percents, and an idle GPU is at exactly 0",
    ),
    Rule(
        "low_gpu_utilization",
        "a GPU has enough to do, all the time",
        low_gpu_utilization,
        {"utilization_p95": P95, "utilization_p5": P5},
        "SageMaker's LowGPUUtilization: threshold_p95 70, threshold_p5 10",
    ),
    Rule(
        "batch_size",
        "a batch fills the machine",
        batch_size,
        {"cpu_p95": P95, "gpu_p95": P95, "gpu_memory_p95": P95},
        "SageMaker's BatchSize: cpu_threshold_p95, gpu_threshold_p95 and gpu_memory_threshold_p95 70",
    ),
    Rule(
        "gpu_memory_increase",
        "a GPU's memory stays as full as it is",
        gpu_memory_increase,
        {"increase_percent": MEMORY_INCREASE, "window": WINDOW, "patience": MEMORY_PATIENCE},
        "SageMaker's GPUMemoryIncrease: increase 5, window 10; its patience of 1000 samples suits runs of hours",
    ),
    Rule(
        "load_balancing",
        "several GPUs work alike",
        load_balancing,
        {"imbalance": IMBALANCE},
        "SageMaker's LoadBalancing: threshold 0.2",
    ),
)
