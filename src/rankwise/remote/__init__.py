"""Run directories on object stores, through fsspec: objects, leases, and a local folder that is mirrored."""
