// Package shell owns what is known of a command line before a host's shell runs
// it: which simple commands it can run and which paths they touch.
//
// sshd hands a client's command line to the login shell of the account, and
// which shell that is the gateway does not know. So only that small language is
// understood that sh, bash, dash, ksh, mksh, zsh, busybox and fish read in the
// same way: lists and pipelines of simple commands whose words are written out,
// with plain redirections to files. The text is parsed as each of several
// shells would, and the results must agree. Everything else (variables,
// substitutions, patterns, functions, here-documents, compound commands, text
// that reaches another interpreter) is unknown, with the reason in words, and
// policy lets no unknown command through by accident. The csh family reads
// quotes, "!" and "2>" in its own way: an account with such a login shell is
// not for the gateway to judge (docs/policy/ssh.md says so).
//
// What is listed is what the shell runs, and what known wrappers (sudo, env,
// timeout, …) run in turn. What a program does beyond that is the program's:
// whoever allows tar allows what tar can be told to do.
//
// The package refuses to run anything, to look at a host, and to expand what
// only the host can.
package shell
