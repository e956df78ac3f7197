"""The one error of the benchmarks: something is broken, as opposed to slow. Knows nothing."""


class BenchError(Exception):
    """A measurement could not be made; the message says why."""
