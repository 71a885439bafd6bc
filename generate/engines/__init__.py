"""Who runs the jobs of a plan."""

ENGINES = ("local", "ray")  # and, where a launcher started this process, its ranks
