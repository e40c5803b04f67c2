"""Where files lie: this machine, or a bucket."""
