package mqtt

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/net/proxy"
)

// maxProxyAnswer is how long a proxy's answer may be, in bytes.
const maxProxyAnswer = 16 << 10

// dial opens a connection to host:port, through a proxy unless that is nil. Errors name the
// proxy by its host alone: its URL holds the password.
func dial(ctx context.Context, by *url.URL, address string) (net.Conn, error) {
	if by == nil {
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}
	conn, err := dialBy(ctx, by, address)
	if err != nil {
		return nil, fmt.Errorf("%s proxy %s: %w", by.Scheme, by.Host, err)
	}
	return conn, nil
}

func dialBy(ctx context.Context, by *url.URL, address string) (net.Conn, error) {
	switch by.Scheme {
	case "http":
		return tunnel(ctx, by, address)
	case "socks5":
		var auth *proxy.Auth
		if by.User != nil {
			auth = &proxy.Auth{User: by.User.Username()}
			auth.Password, _ = by.User.Password()
		}
		socks, err := proxy.SOCKS5("tcp", portOf(by, "1080"), auth, &net.Dialer{})
		if err != nil {
			return nil, err
		}
		return socks.(proxy.ContextDialer).DialContext(ctx, "tcp", address) // the package says that it is one
	}
	return nil, errors.New("want http or socks5")
}

// portOf is the proxy's host:port.
func portOf(by *url.URL, otherwise string) string {
	if by.Port() == "" {
		return net.JoinHostPort(by.Hostname(), otherwise)
	}
	return by.Host
}

// tunnel asks an HTTP proxy for a connection with CONNECT (RFC 9110, 9.3.6).
func tunnel(ctx context.Context, by *url.URL, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", portOf(by, "80"))
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // unblocks it
	err = ask(conn, by.User, address)
	if !stop() {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// ask sends the CONNECT and reads its answer, which is bounded, and nothing behind it: the
// relay does not speak first. No error quotes the answer, which may quote the password.
func ask(conn net.Conn, user *url.Userinfo, address string) error {
	request := http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{"User-Agent": {"storelay-agent"}}}
	if user != nil {
		password, _ := user.Password()
		request.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	if err := request.Write(conn); err != nil {
		return err
	}
	r := bufio.NewReader(io.LimitReader(conn, maxProxyAnswer))
	response, err := http.ReadResponse(r, &request) //nolint:bodyclose // what follows is the tunnel, or is dropped with the connection
	switch {
	case errors.As(err, new(net.Error)) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("read its answer: %w", err)
	case err != nil:
		return errors.New("its answer is not HTTP")
	case response.StatusCode == http.StatusProxyAuthRequired && user == nil:
		return errors.New("it wants a user and a password; set `proxy: http://user:password@host:port` in the configuration")
	case response.StatusCode == http.StatusProxyAuthRequired:
		return errors.New("it does not take the user and password that are set in `proxy` of the configuration")
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("it does not connect to %s: %d %s", address, response.StatusCode, http.StatusText(response.StatusCode))
	case r.Buffered() > 0:
		return errors.New("it has sent more than its answer")
	}
	return nil
}
