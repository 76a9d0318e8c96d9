"""The model that others use: MLflow's pyfunc, exports, a base as it was released."""
