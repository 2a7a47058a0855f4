// Package kube carries exec, attach and port-forward to Kubernetes API servers.
// Envoy hands it the requests that leave HTTP, once its authorizer has let them
// through; what was let through it learns from a ticket, not from the request.
//
//	kubectl        Envoy          extauthz      this package           API server
//	  │ GET …/exec?… │               │                │                     │
//	  │  Upgrade ──► │  Check ─────► │ judged, held,  │                     │
//	  │              │               │ recorded       │                     │
//	  │              │               │ Admit ───────► │ kept 30 s           │
//	  │              │ ◄── ticket ── │                │                     │
//	  │              │ ── the request and its ticket ►│ redeemed, once      │
//	  │              │                                │ ── TLS, credential, │
//	  │              │                                │    as judged ─────► │
//	  │              │                                │ ◄──────────── 101 ─ │
//	  │ ◄────────────┴────────────────────────── 101 ─ │                     │
//	  │  stdin, resize ──────────────────────────────► │ record ───────────► │
//	  │ ◄───────────────────────────── mask, record ── │ ◄── stdout, stderr  │
//
// Both sides speak the same protocol: WebSocket with channels (v5 and
// v4.channel.k8s.io), SPDY/3.1, or SPDY/3.1 within a WebSocket, which is how
// kubectl forwards ports. Every frame is taken apart and made anew or, when it
// has no content, checked and passed on. Nothing of a frame is kept but what it
// takes to read the next one.
//
// The package refuses what it does not know by name: protocols, channels,
// streams, headers, frames that nobody sends. It does not judge: see extauthz.
package kube
