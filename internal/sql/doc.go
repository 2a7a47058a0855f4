// Package sql reads SQL for the gateway: it parses a statement with
// PostgreSQL's own grammar, binds every name in it against a snapshot of the
// catalog, judges what the statement does (access.SQL), and rewrites reads of
// masked columns so that the database computes on the mask.
//
//	text ──► parser.Pool ──► tree + tokens ──► judge ──► access.SQL ──► policy
//	         (worker process)                    ▲                        │ masks
//	catalog.Snapshot (side connection) ──────────┴──────► Mask ◄──────────┘
//	                                                       │ spliced, parsed and judged again
//	                                                       ▼
//	                                                    Forward.Text ──► target
//
// It refuses what it cannot read: an unknown node of the grammar, a name that
// it cannot bind, an operation whose effect is not known. Nothing here decides
// whether a statement is allowed (package policy does), and nothing here speaks
// the wire protocol (package session/postgres does).
package sql
