"""Where the tasks of a pipeline run."""
