"""The tree of errors. Each message says what was expected, what was found, and what to do.

CltrainError
├── ConfigError        a setting is missing, misspelt, of the wrong type or out of range
├── DataError          the data cannot be used as described
│   ├── SchemaError    a column is missing or of a kind that cannot be used
│   └── LabelError     the labels do not fit the task
├── StoreError         the registry or the blob root cannot be read or written
│   ├── ConflictError  somebody else moved the alias or took the round first
│   └── DigestError    a file is not the one that was recorded
├── UpdateError        an update could not be trained
├── ClusterError       a job could not be started on a cluster, or failed there
└── ServingError       the serving application could not start or did not follow a swap
"""

from __future__ import annotations


class CltrainError(Exception):
    """Base of all errors that a user can act on; jobs print its message and exit with status 2."""


class ConfigError(CltrainError):
    pass


class DataError(CltrainError):
    pass


class SchemaError(DataError):
    pass


class LabelError(DataError):
    pass


class StoreError(CltrainError):
    pass


class ConflictError(StoreError):
    pass


class DigestError(StoreError):
    pass


class UpdateError(CltrainError):
    pass


class ClusterError(CltrainError):
    pass


class ServingError(CltrainError):
    pass
