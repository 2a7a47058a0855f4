// Package sftp owns what is known of one SFTP session: a filter between client
// and server that turns each request into an act on paths, asks whether it may
// happen, and lets only that through which may.
//
//	client              Filter                  server
//	INIT ──────────────► version 3 ───────────────►
//	◄──────────── VERSION, known extensions ◄──────
//	OPEN /a ───────────► Decide(read /a) ─────────►
//	◄───────────── HANDLE h: /a, to read ◄─────────
//	READ h ────────────► h is open to read ───────►
//	◄──────────────────── DATA: digest ◄───────────
//	REMOVE /b ─────────► Decide(remove /b): no
//	◄─ STATUS: permission denied, and why
//
// It speaks version 3 (draft-ietf-secsh-filexfer-02), which is what OpenSSH and
// every client of it speak, and of OpenSSH's extensions those that it can judge;
// the server's list of extensions is cut to these. A handle stands for the path
// and the mode that were judged when it was opened. Both sides are taken for
// hostile: what is malformed, out of order, or answers nothing ends the session.
//
// The package refuses to alter files in transit, to follow symbolic links, and
// to read or write files itself.
package sftp
