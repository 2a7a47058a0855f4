package kube

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"

	"chaperone.dev/chaperone/internal/access"
)

// The channels of a WebSocket: the first byte of each message.
const (
	channelStdin  = 0
	channelStdout = 1
	channelStderr = 2
	channelError  = 3
	channelResize = 4
	channelClose  = 255 // v5: the channel that it names has no more
)

// A channels relay carries exec and attach over WebSocket.
type channels struct {
	flow       *flow
	fromClient *wsReader
	toClient   *wsWriter
	fromTarget *wsReader
	toTarget   *wsWriter
	closes     bool // v5

	sizes                  sizes
	stdout, stderr, status *output
}

func (f *flow) channels(client, target side, protocol string) relay {
	return &channels{flow: f, closes: protocol == protocolV5,
		fromClient: &wsReader{from: client.reader, masked: true}, toClient: &wsWriter{to: client.conn},
		fromTarget: &wsReader{from: target.reader}, toTarget: &wsWriter{to: target.conn, masked: true},
		stdout: f.output(access.Stdout), stderr: f.output(access.Stderr), status: f.output("")}
}

// channelOf takes the channel off the first piece of a message.
func channelOf(p piece, channel byte) (byte, []byte, error) {
	if !p.first {
		return channel, p.bytes, nil
	}
	if len(p.bytes) == 0 {
		return 0, nil, broken("a message without a channel")
	}
	return p.bytes[0], p.bytes[1:], nil
}

func (c *channels) input(ctx context.Context) error {
	var channel byte
	for {
		p, err := c.fromClient.next()
		if err != nil {
			return gone(err)
		}
		switch p.opcode {
		case opClose:
			_ = c.toTarget.frame(opClose, p.bytes) // it may have ended
			return nil
		case opPing, opPong:
			_ = c.toTarget.frame(p.opcode, p.bytes)
		default:
			var rest []byte
			if channel, rest, err = channelOf(p, channel); err == nil {
				err = c.in(ctx, channel, p, rest)
			}
		}
		if err != nil {
			return err
		}
	}
}

// gone turns the end of a connection, however it came, into nil.
func gone(err error) error {
	var network *net.OpError
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &network) {
		return nil
	}
	return err
}

func (c *channels) in(ctx context.Context, channel byte, p piece, rest []byte) error {
	switch channel {
	case channelStdin:
		if err := c.flow.stdin(ctx, access.Stdin, rest); err != nil {
			return err
		}
	case channelResize:
		if err := c.sizes.take(rest, c.flow.resized(ctx)); err != nil {
			return err
		}
	case channelClose:
		if !c.closes || !p.first || !p.last || len(rest) != 1 || rest[0] != channelStdin {
			return broken("a channel is closed that cannot be")
		}
	default:
		return broken("the client writes to channel %d", channel)
	}
	_ = c.toTarget.frame(opBinary, []byte{channel}, rest) // it may have ended; what it still says is on its way
	return nil
}

func (c *channels) output(ctx context.Context) error {
	var channel byte
	for {
		p, err := c.fromTarget.next()
		if ctx.Err() != nil { // the end is another's to tell
			return nil
		}
		if err != nil || p.opcode == opClose {
			if fault := cmp.Or(c.flush(ctx), gone(err)); fault != nil {
				return fault
			}
			if err != nil {
				return c.toClient.close(1011, "the API server left")
			}
			return c.toClient.frame(opClose, p.bytes)
		}
		if p.opcode == opBinary {
			var rest []byte
			if channel, rest, err = channelOf(p, channel); err == nil {
				err = c.out(ctx, channel, p, rest)
			}
		} else {
			err = c.toClient.frame(p.opcode, p.bytes)
		}
		if err != nil {
			return err
		}
	}
}

func (c *channels) out(ctx context.Context, channel byte, p piece, rest []byte) error {
	o := map[byte]*output{channelStdout: c.stdout, channelStderr: c.stderr, channelError: c.status}[channel]
	if o == nil {
		return broken("the API server writes to channel %d", channel)
	}
	if channel == channelError && len(rest) > 0 { // the command has ended, and clients may not read on
		if err := c.flush(ctx); err != nil {
			return err
		}
	}
	if len(rest) == 0 && p.first { // how servers begin
		return c.toClient.frame(opBinary, []byte{channel})
	}
	masked, err := o.take(ctx, rest)
	if err != nil || len(masked) == 0 {
		return err
	}
	return c.toClient.frame(opBinary, []byte{channel}, masked)
}

// flush sends what was held back.
func (c *channels) flush(ctx context.Context) error {
	for _, o := range []struct {
		channel byte
		output  *output
	}{{channelStdout, c.stdout}, {channelStderr, c.stderr}, {channelError, c.status}} {
		rest, err := o.output.rest(ctx)
		if err == nil && len(rest) > 0 {
			err = c.toClient.frame(opBinary, []byte{o.channel}, rest)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *channels) farewell(d *access.Denial) {
	if len(c.flow.status) == 0 {
		_ = c.toClient.frame(opBinary, []byte{channelError}, lastWords(d)) // it may have left
	}
	_ = c.toClient.close(1000, d.Message)
}
