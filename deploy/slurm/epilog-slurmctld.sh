#!/bin/sh
# EpilogSlurmctld: ends or drains the attempt of a run. While the daemon is away, the report waits in the spool. Slurm gives no PATH.
export LEASEHOLD_CONTEXTS=/etc/leasehold/slurm/contexts.toml
/usr/bin/leasehold slurm epilog --spool /var/spool/leasehold 2>&1 | /usr/bin/logger -t leasehold
exit 0
