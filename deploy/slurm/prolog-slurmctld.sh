#!/bin/sh
# PrologSlurmctld: begins the attempt of a run whose comment names a Leasehold job. Slurm gives no PATH; a failure would requeue the job.
export LEASEHOLD_CONTEXTS=/etc/leasehold/slurm/contexts.toml
/usr/bin/leasehold slurm prolog --spool /var/spool/leasehold --runs-as 'spiffe://hpc.acme.example/slurm/{account}/{user}' 2>&1 | /usr/bin/logger -t leasehold
exit 0
