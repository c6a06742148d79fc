package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
)

const tokenPath = "/token"

// A Login is what a host asks of its clients.
type Login struct {
	User, Password string
	// Bearer makes the host send its clients to a token service instead of taking the password itself.
	Bearer bool

	renewed int
}

// Require makes a host ask for a login. The zero Login ends that.
func (r *Registry) Require(host string, l Login) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l == (Login{}) {
		delete(r.logins, host)
		return
	}
	r.logins[host] = l
}

// token is what the token service gives to those who know the password: a string that the registry can check without a
// list of what it has given.
func (l Login) token(host string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%d", host, l.User, l.Password, l.renewed))
	return hex.EncodeToString(sum[:])
}

// RenewTokens makes all tokens of a host that were given so far worthless.
func (r *Registry) RenewTokens(host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.logins[host]
	l.renewed++
	r.logins[host] = l
}

// Token returns the bearer token with which a host's token service answers its login: what a client may also send as a
// registry token.
func (r *Registry) Token(host string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.logins[host].token(host)
}

// authorized checks a request. If it may not go on, it has been answered.
func (r *Registry) authorized(w http.ResponseWriter, req *http.Request, host string) bool {
	r.mu.Lock()
	login, asks := r.logins[host]
	r.mu.Unlock()
	if !asks {
		return true
	}
	if bearer, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer "); ok && bearer == login.token(host) {
		return true
	}
	if user, password, ok := req.BasicAuth(); ok && !login.Bearer && user == login.User && password == login.Password {
		return true
	}
	challenge := `Basic realm="test"`
	if login.Bearer {
		scheme := "http"
		if req.TLS != nil {
			scheme = "https"
		}
		challenge = fmt.Sprintf(`Bearer realm="%s://%s%s",service="%s"`, scheme, req.Host, tokenPath, host)
	}
	w.Header().Set("WWW-Authenticate", challenge)
	fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "log in")
	return false
}

// serveToken is the token service. It takes a password by basic authentication (GET), or by form as OAuth2 does (POST),
// where the password may also be an identity token.
func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	host := req.FormValue("service")
	r.mu.Lock()
	login := r.logins[host]
	r.mu.Unlock()
	user, password, _ := req.BasicAuth()
	switch req.FormValue("grant_type") {
	case "password":
		user, password = req.FormValue("username"), req.FormValue("password")
	case "refresh_token":
		user, password = login.User, req.FormValue("refresh_token")
	}
	if login == (Login{}) || user != login.User || password != login.Password {
		fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "wrong user or password")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"token":%q,"access_token":%q,"expires_in":300}`, login.token(host), login.token(host))
}
