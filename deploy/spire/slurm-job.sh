#!/bin/sh
# Gives each Slurm job its own SPIFFE ID: `slurm-job.sh begin` from PrologSlurmctld, `slurm-job.sh end` from EpilogSlurmctld, on the host
# with the SPIRE server's socket. SPIRE's Slurm attestor reads the job's number from the cgroup that slurmstepd makes, so no process can
# get the ID of another job; the agents of all compute nodes share the alias that PARENT names.
#
# In the catalog: match = "spiffe://hpc.acme.example/slurm/*/job/*", kind = "workload", identity = "job".
set -eu

TRUST_DOMAIN=${TRUST_DOMAIN:-hpc.acme.example}
PARENT=${PARENT:-spiffe://$TRUST_DOMAIN/node/compute}
SOCKET=${SPIRE_SERVER_SOCKET:-/run/spire-server/private/api.sock}
# If leasehold's daemon is in another trust domain, its bundle comes with the job's SVID.
FEDERATES_WITH=${FEDERATES_WITH:-}
# 4 h are enough for an outage of SPIRE of two hours.
TTL_SECONDS=${TTL_SECONDS:-14400}
# The longest time that a job may run. After it SPIRE deletes an entry whose epilog never ran.
LONGEST_SECONDS=${LONGEST_SECONDS:-2592000}

case ${SLURM_JOB_ID:-} in
    '' | *[!0-9]*)
        echo 'slurm-job.sh: SLURM_JOB_ID is not a number: run this as a prolog or epilog of slurmctld' >&2
        exit 64
        ;;
esac
case ${SLURM_JOB_ACCOUNT:-} in
    '' | *[!a-zA-Z0-9._-]* | . | ..)
        echo 'slurm-job.sh: SLURM_JOB_ACCOUNT cannot be a segment of a SPIFFE ID' >&2
        exit 64
        ;;
esac
entry=slurm-job-$SLURM_JOB_ID

case ${1:-} in
    begin)
        # A job that was requeued has its entry already.
        if spire-server entry show -socketPath "$SOCKET" -entryID "$entry" >/dev/null 2>&1; then
            exit 0
        fi
        spire-server entry create -socketPath "$SOCKET" -entryID "$entry" -parentID "$PARENT" \
            -spiffeID "spiffe://$TRUST_DOMAIN/slurm/$SLURM_JOB_ACCOUNT/job/$SLURM_JOB_ID" \
            -selector "slurm:job_id:$SLURM_JOB_ID" -x509SVIDTTL "$TTL_SECONDS" \
            -entryExpiry $(($(date +%s) + LONGEST_SECONDS)) ${FEDERATES_WITH:+-federatesWith "$FEDERATES_WITH"}
        ;;
    end)
        spire-server entry delete -socketPath "$SOCKET" -entryID "$entry"
        ;;
    *)
        echo 'usage: slurm-job.sh begin | end' >&2
        exit 64
        ;;
esac
