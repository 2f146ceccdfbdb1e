"""What runs the flows: run files, Prefect deployments, set-up."""
