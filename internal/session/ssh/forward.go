package ssh

import (
	"context"
	"fmt"
	"io"
	"sync"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
)

// forward judges a connection that the client wants the target to make for it,
// and carries it when policy lets it (RFC 4254, section 7.2, and OpenSSH's own
// for sockets).
func (s *session) forward(ctx context.Context, incoming gossh.NewChannel) {
	if s.refused != nil {
		s.reject(incoming, gossh.Prohibited, s.refused.Text())
		return
	}
	call := access.SSHCall{Act: access.ActForward, User: s.user, Operation: incoming.ChannelType()}
	var to struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	var socket struct {
		Path, Reserved string
		ReservedPort   uint32
	}
	var err error
	if call.Operation == "direct-tcpip" {
		err = gossh.Unmarshal(incoming.ExtraData(), &to)
		call.Host, call.Port = to.Host, int(to.Port)
	} else {
		err = gossh.Unmarshal(incoming.ExtraData(), &socket)
		call.Host = socket.Path
	}
	if err != nil || len(call.Host) > 255 || call.Port > 65535 {
		s.reject(incoming, gossh.ConnectionFailed, "the request cannot be read")
		return
	}
	v, r := s.permit(ctx, call, func(string) error { return nil }) // a forward has no stderr
	if r != nil {
		s.denied(ctx, r, "")
		s.reject(incoming, gossh.Prohibited, r.denial.Text())
		return
	}
	defer v.end(ctx)
	if err := s.carry(ctx, v, incoming); err != nil {
		v.failure = access.Printable(err.Error(), 200)
	}
}

// carry connects the client's channel with one of the target's.
func (s *session) carry(ctx context.Context, v *verdict, incoming gossh.NewChannel) error {
	client, err := s.reach(ctx)
	if err != nil {
		s.reject(incoming, gossh.ConnectionFailed, "the gateway cannot reach "+s.resource.Access.Name)
		return err
	}
	up, upRequests, err := client.OpenChannel(incoming.ChannelType(), incoming.ExtraData())
	if err != nil {
		s.reject(incoming, gossh.ConnectionFailed, s.resource.Access.Name+" does not connect")
		return err
	}
	defer up.Close()
	down, downRequests, err := incoming.Accept()
	if err != nil {
		return err
	}
	defer down.Close()
	go gossh.DiscardRequests(upRequests)
	go gossh.DiscardRequests(downRequests)
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer v.endInTime(end)()
	stop := context.AfterFunc(ctx, func() { up.Close(); down.Close() })
	defer stop()
	log := s.newTranscript(v, false)
	var both sync.WaitGroup
	var mu sync.Mutex
	count := func(n int64) bool {
		mu.Lock()
		defer mu.Unlock()
		v.bytes += n
		most := v.decision.Obligations.Limits.Bytes
		if over := v.use.Read(ctx, 0, n); over == nil && (most == 0 || v.bytes <= most) {
			return true
		}
		v.failure = fmt.Sprintf("it carried %d bytes, more than its limit", v.bytes)
		return false
	}
	copyTo := func(name string, from, to gossh.Channel) {
		buffer := make([]byte, chunk)
		for {
			n, err := from.Read(buffer)
			if n > 0 {
				if !count(int64(n)) {
					up.Close()
					down.Close()
					return
				}
				_ = log.Write(ctx, name, buffer[:n]) // it only counts
				if _, werr := to.Write(buffer[:n]); werr != nil {
					return
				}
			}
			if err != nil {
				if err == io.EOF {
					_ = to.CloseWrite() // the other end may have left
				}
				return
			}
		}
	}
	both.Go(func() { s.guard(func() { copyTo(access.Stdin, down, up) }) })
	both.Go(func() { s.guard(func() { copyTo(access.Stdout, up, down) }) })
	both.Wait()
	v.sums(log)
	return nil
}

// listenRequest judges the wish that the target listens for the client. The
// gateway never does that: what connects there would come with nobody's name.
func (s *session) listenRequest(ctx context.Context, request *gossh.Request) {
	call := access.SSHCall{Act: access.ActForward, Operation: request.Type, User: s.user}
	var tcp struct {
		Host string
		Port uint32
	}
	var socket struct{ Path string }
	if request.Type == "tcpip-forward" && gossh.Unmarshal(request.Payload, &tcp) == nil {
		call.Host, call.Port = access.Printable(tcp.Host, 255), int(tcp.Port&0xffff)
	} else if gossh.Unmarshal(request.Payload, &socket) == nil {
		call.Host = access.Printable(socket.Path, 255)
	}
	if s.refused == nil {
		s.neverServed(ctx, call, "the gateway listens for nobody on a host")
	}
	if request.WantReply {
		_ = request.Reply(false, nil) // the client may have left
	}
}
