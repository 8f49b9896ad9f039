package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/pflag"
)

// reload reads settings, directories and certificates again. What is wrong with
// them is logged, and then nothing changes.
func (s *service) reload(ctx context.Context) {
	s.notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
	if err := s.tryReload(ctx); err != nil {
		s.log.Error().Str("error", errorLine(err)).Msg("reload failed, everything stays as it was")
	} else {
		s.log.Info().Int("exports", len(s.exports)).Msg("reloaded")
	}
	s.notify(daemon.SdNotifyReady)
}

func (s *service) tryReload(ctx context.Context) error {
	next := s.serveOptions
	if s.config != "" {
		var err error
		if next.settings, err = readConfig(s.config, s.given); err != nil {
			return err
		}
	}
	if err := next.validate(); err != nil {
		return err
	}
	specs, err := next.exportSpecs(s.args)
	if err != nil {
		return err
	}
	s.warnOfRestart(&next.settings)
	tls := s.tls.current.Load()
	if next.TLS.value == s.TLS.value {
		if tls, err = next.loadTLS(s.log); err != nil {
			return err
		}
	}
	if err := s.replaceExports(ctx, specs); err != nil {
		return err
	}
	s.tls.current.Store(tls)
	return nil
}

// fixed are the settings that hold from the start to the end of a server.
var fixed = []string{
	"listen", "unix-mode", "pid-file", "tls", "max-connections", "max-connections-per-peer", "handshake-timeout",
	"idle-timeout", "write-timeout", "max-memory", "user", "group", "sandbox", "log-level",
}

// warnOfRestart names the settings that have changed and that a reload cannot.
func (s *service) warnOfRestart(next *settings) {
	now := map[string]string{}
	for _, g := range s.settings.groups() {
		g.flags.VisitAll(func(f *pflag.Flag) { now[f.Name] = f.Value.String() })
	}
	for _, g := range next.groups() {
		g.flags.VisitAll(func(f *pflag.Flag) {
			if slices.Contains(fixed, f.Name) && f.Value.String() != now[f.Name] {
				s.log.Warn().Str("setting", f.Name).Msg("changed, and takes effect when the server is restarted")
			}
		})
	}
}

// replaceExports serves specs instead of what is served now. Images that stay are
// not touched. Those that are new are opened before anything ends, so that an error
// changes nothing; but for an image that stays with other options, which must be
// closed to be opened, and so goes last.
func (s *service) replaceExports(ctx context.Context, specs []exportSpec) error {
	var next, opened []served
	var later []exportSpec
	for _, spec := range specs {
		held := s.imageOf(spec)
		switch {
		case held == nil:
			im, err := s.openAgain(ctx, spec)
			if err != nil {
				return errors.Join(err, closeAll(opened))
			}
			if im != nil {
				opened = append(opened, served{spec, im})
			}
		case held.opened == spec.options():
			next = append(next, served{spec, held})
		default:
			later = append(later, spec)
		}
	}
	next = append(next, opened...)
	if err := s.setExports(ctx, next); err != nil {
		return errors.Join(err, closeAll(opened))
	}
	for _, e := range opened {
		s.announce(e.image, e.name)
	}
	was := s.exports
	s.exports = next
	s.closeUnused(was)
	return s.openLater(ctx, later, was)
}

// imageOf is the open image of the file that spec names, nil if there is none.
func (s *service) imageOf(spec exportSpec) *image {
	for _, e := range s.exports {
		if e.image.holds(spec) {
			return e.image
		}
	}
	return nil
}

// setExports ends the clients of what is not in next.
func (s *service) setExports(ctx context.Context, next []served) error {
	endBy, release := context.WithTimeout(ctx, shutdownTimeout)
	defer release()
	was := s.admission.put(next) // first: nothing new is for everybody, not for a moment
	err := s.server.SetExports(endBy, nbdExports(next))
	if err != nil {
		s.admission.allowed.Store(was)
	}
	return err
}

// closeUnused closes the images of exports that are not served any more.
func (s *service) closeUnused(was []served) {
	for _, e := range was {
		if slices.ContainsFunc(s.exports, func(now served) bool { return now.image == e.image }) {
			continue
		}
		if err := e.image.close(); err != nil {
			s.log.Error().Err(err).Str("path", e.path).Msg("closing an image that is not served any more")
			continue
		}
		s.log.Info().Str("path", e.path).Str("export", e.name).Msg("image closed")
	}
}

// openLater opens images with other options than those with which they were served
// until now; where that fails, with the old ones.
func (s *service) openLater(ctx context.Context, later []exportSpec, was []served) error {
	var errs []error
	for _, spec := range later {
		im, err := s.openAgain(ctx, spec)
		if err != nil {
			errs = append(errs, err)
			i := slices.IndexFunc(was, func(e served) bool { return sameFile(e.path, spec.path) })
			spec = was[i].exportSpec
			im, err = s.openAgain(ctx, spec)
			errs = append(errs, err)
		}
		if im != nil {
			s.exports = append(s.exports, served{spec, im})
			s.announce(im, spec.name)
		}
	}
	if len(later) == 0 {
		return nil
	}
	return errors.Join(append(errs, s.setExports(ctx, s.exports))...)
}

// openAgain is open, with a hint where the sandbox may be in the way.
func (s *service) openAgain(ctx context.Context, spec exportSpec) (*image, error) {
	im, err := s.open(ctx, spec)
	if err != nil && s.confined && !s.reaches(spec.path) {
		err = fmt.Errorf("%w; the sandbox lets a running server open only what lies in directories used at its start: restart it for others", err)
	}
	return im, err
}

// reaches says whether path is in the sandbox, by its looks.
func (s *service) reaches(path string) bool {
	f := s.atStart
	return slices.ContainsFunc(slices.Concat(f.Read, f.Write, f.Create), func(dir string) bool {
		rel, err := filepath.Rel(dir, path)
		return err == nil && filepath.IsLocal(rel)
	})
}

func closeAll(all []served) error {
	var errs []error
	for _, e := range all {
		errs = append(errs, e.image.close())
	}
	return errors.Join(errs...)
}
