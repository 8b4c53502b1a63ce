"""The profiler: a sampler watches the machine, a timer the run; rules judge both."""
