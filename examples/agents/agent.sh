#!/bin/sh
# The tools of an LLM agent, in place of the agent: it asks what it may reach,
# reads what it was given, and is told no, with a reason that it can act on.
# Start it with no more than its task needs, handed on no further:
#
#   chaperone exec billing --method GET --path /customers --depth 0 -- ./agent.sh
set -eu
send() { curl -sS -H @"$CHAPERONE_HEADER_FILE" "$@"; echo; }
send "$CHAPERONE_GATEWAY/.well-known/chaperone"
send "${CHAPERONE_BILLING_URL}customers/1"
send -X POST -H 'Content-Type: application/json' -d '{"order": 1}' "${CHAPERONE_BILLING_URL}refunds"
