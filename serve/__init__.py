"""The serving application: one HTTP endpoint whose replicas hold the resident versions and follow the registry."""
