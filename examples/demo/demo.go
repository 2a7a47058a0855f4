package demo

import (
	"context"
	"fmt"
	"io"
	"time"

	"chaperone.dev/chaperone/internal/localserver"
)

// Run starts a Site, tells the story on it and, unless once, keeps it running
// until ctx ends. It returns the first thing that went wrong.
func Run(ctx context.Context, o Options, once, colour bool, out io.Writer) error {
	began := time.Now()
	o.Progress = func(step string) { fmt.Fprintf(out, "[%4.1fs] %s\n", time.Since(began).Seconds(), step) }
	site, err := Start(ctx, o)
	if err != nil {
		return err
	}
	defer site.Close()
	t := &teller{Site: site, out: out, colour: colour}
	if err := t.links(ctx); err != nil {
		return err
	}
	if err := t.tokens(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, `
The commands below are run as printed. Their variables:
  ORDERS="%s"
  GW=%s   CA=%s
  ADA is the token of Ada's agent, EXPIRED and OTHER are bad ones; GRACE (senior engineer),
  ALAN (platform), SOFIA (security) and TOMSELF (nobody in particular) are people's own.
`, t.ConnString(t.tls), t.URL(), t.path("ca.crt"))
	for i, c := range t.chapters() {
		t.title(i+1, c.title)
		if err := c.tell(ctx); err != nil {
			return fmt.Errorf("step %d (%s) went wrong: %w\nthe gateway's log: %s", i+1, c.title, err, t.path("gateway.log"))
		}
	}
	t.paint("1;32", fmt.Sprintf("\nAll %d steps went as they should, in %.0f s.\n", len(t.chapters()), time.Since(began).Seconds()))
	if once {
		return nil
	}
	fmt.Fprintf(out, `
It keeps running until Ctrl-C. Tokens are in %[1]s; try, in another terminal:
  export PGPASSWORD=$(cat %[1]s/ada)
  psql "%[2]s"
  curl --cacert %[3]s -H "Authorization: Bearer $PGPASSWORD" %[4]s/http/billing/customers/2
The web console is at %[4]s/console (the certificate is the demo's own). Log in with dex as
%[5]s (reviews), %[6]s (operates) or %[7]s (reads recordings), password: %[8]s
`, t.path("tokens"), t.ConnString(t.tls), t.path("ca.crt"), t.URL(), Grace, Alan, Sofia, localserver.DexPassword)
	<-ctx.Done()
	return nil
}
