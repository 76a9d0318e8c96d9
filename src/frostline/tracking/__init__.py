"""MLflow as a sink: store, runs, lineage. The home of MLflow."""
