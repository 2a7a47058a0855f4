package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/directory"
	"chaperone.dev/chaperone/internal/isolate"
)

// An isolation is what exec was told of the network that its command gets.
type isolation struct {
	on   bool
	user string
}

func (i *isolation) flags(c *cobra.Command) {
	c.Flags().BoolVar(&i.on, "isolate", false, "on Linux: run the command in a network namespace that reaches nothing but the gateway")
	c.Flags().StringVar(&i.user, "user", "", "with --isolate, as root: run the command as this user (default: who ran sudo)")
}

// as is whom the command runs as; nil is oneself.
func (i *isolation) as() (*isolate.User, error) {
	if !i.on {
		if i.user != "" {
			return nil, fmt.Errorf("%w: --user goes with --isolate", errUsage)
		}
		return nil, nil
	}
	uid, gid := os.Getenv("SUDO_UID"), os.Getenv("SUDO_GID")
	switch {
	case i.user != "":
		u, err := user.Lookup(i.user)
		if err != nil {
			return nil, fmt.Errorf("%w: --user: %w", errUsage, err)
		}
		uid, gid = u.Uid, u.Gid
	case os.Getuid() != 0:
		return nil, nil
	case uid == "" || gid == "":
		return nil, fmt.Errorf("%w: root is not isolated, for others run what it writes: say with --user as whom the command runs", errUsage)
	}
	id, err := strconv.Atoi(uid)
	group, err2 := strconv.Atoi(gid)
	return &isolate.User{UID: id, GID: group}, errors.Join(err, err2)
}

// run is cmd.Run, isolated when that was asked for.
func (i *isolation) run(ctx context.Context, cmd *exec.Cmd, g *gateway, files *tokenFiles) error {
	if !i.on {
		return cmd.Run()
	}
	reach, err := g.addresses(files.resources)
	if err != nil {
		return err
	}
	return isolate.Run(ctx, cmd, isolate.Config{Reach: reach, Dial: new(net.Dialer).DialContext, Folder: files.dir, User: files.owner})
}

// addresses are the gateway's, as the command is told them.
func (g *gateway) addresses(found []directory.Resource) (all []isolate.Address, err error) {
	add := func(host, port string) {
		n, failed := strconv.Atoi(port)
		if a := (isolate.Address{Host: host, Port: n}); failed != nil {
			err = errors.Join(err, failed)
		} else if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	web := func(text string) {
		u, failed := url.Parse(text)
		if failed != nil {
			err = errors.Join(err, failed)
			return
		}
		port := u.Port()
		if port == "" {
			port = "443"
		}
		add(u.Hostname(), port)
	}
	web(g.url)
	for _, r := range found {
		if r.Host != "" {
			add(r.Host, strconv.Itoa(r.Port))
		} else {
			web(r.URL)
		}
	}
	return all, err
}

// unproxied is the environment without the proxies that nothing isolated reaches.
func unproxied(env []string) []string {
	return slices.DeleteFunc(env, func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains([]string{"http_proxy", "https_proxy", "all_proxy", "ftp_proxy"}, strings.ToLower(name))
	})
}
