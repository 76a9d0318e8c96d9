"""Before anything runs: problems of params.yaml, what a run stores and takes, what reruns."""
