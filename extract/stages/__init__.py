"""Stages: one `run` a stage of dvc.yaml."""
