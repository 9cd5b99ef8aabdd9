#!/bin/sh
# Epilog: ends the members on this node that could not report their end. While the daemon is away, the report waits in the spool.
# Slurm gives no PATH; a failure would drain the node.
export LEASEHOLD_CONTEXTS=/etc/leasehold/slurm/contexts.toml
/usr/bin/leasehold slurm node-epilog --spool /var/spool/leasehold 2>&1 | /usr/bin/logger -t leasehold
exit 0
