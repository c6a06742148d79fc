package cri

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime"
	"github.com/berth-node/berth/runtime/image"
)

// PullImage fetches an image and returns its ID, by which everything else names it too.
func (s *Server) PullImage(ctx context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	if err := checkImage("image", r.GetImage()); err != nil {
		return nil, err
	}
	if err := s.checkHandler(ctx, r.GetImage().GetRuntimeHandler()); err != nil {
		return nil, err
	}
	begun := time.Now()
	img, err := s.cfg.Images.Pull(ctx, r.GetImage().GetImage(), fromAuth(r.GetAuth()), image.PullOptions{})
	s.cfg.Metrics.ImagePulled(time.Since(begun), img.Size, err)
	if err != nil {
		return nil, pullError(r.GetImage().GetImage(), err)
	}
	return &cri.PullImageResponse{ImageRef: img.ID}, nil
}

// checkHandler refuses to pull for a handler that does not exist, as the CRI wants. All handlers share the images.
func (s *Server) checkHandler(ctx context.Context, name string) error {
	if name == "" {
		return nil
	}
	known := func(h runtime.Handler) bool { return h.Name == name }
	if !slices.ContainsFunc(s.cfg.Runtime.Status(ctx).Handlers, known) {
		return invalid("image.runtime_handler", "there is no handler %q", name)
	}
	return nil
}

// pullError says in the kubelet's words that a registry cannot be reached, so that the pod's status does too.
func pullError(ref string, err error) error {
	if errors.Is(err, errdefs.ErrUnavailable) {
		return fmt.Errorf("%w: pull %s: %w", crierrors.ErrRegistryUnavailable, ref, err)
	}
	return fmt.Errorf("pull %s: %w", ref, err)
}

// ImageStatus tells of one image; none there is an answer without an image, not an error.
func (s *Server) ImageStatus(_ context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	if err := checkImage("image", r.GetImage()); err != nil {
		return nil, err
	}
	img, err := s.cfg.Images.Get(r.GetImage().GetImage())
	if errors.Is(err, errdefs.ErrNotFound) {
		return &cri.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &cri.ImageStatusResponse{Image: toImage(img)}
	if r.GetVerbose() {
		if resp.Info, err = verbose(imageInfo(img)); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

func imageInfo(img image.Image) map[string]any {
	info := map[string]any{"imageSpec": img.Config, "pulled": img.Pulled}
	if n := len(img.ChainIDs); n > 0 {
		info["chainID"] = img.ChainIDs[n-1]
	}
	return info
}

func (s *Server) images(f *cri.ImageFilter) ([]*cri.Image, error) {
	// No name, or an empty one, is no filter.
	name := f.GetImage().GetImage()
	if name == "" {
		found := s.cfg.Images.List()
		items := make([]*cri.Image, 0, len(found))
		for _, img := range found {
			items = append(items, toImage(img))
		}
		return items, nil
	}
	if err := checkImage("filter.image", f.GetImage()); err != nil {
		return nil, err
	}
	img, err := s.cfg.Images.Get(name)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []*cri.Image{toImage(img)}, nil
}

// ListImages lists all images, or the one that the filter names.
func (s *Server) ListImages(_ context.Context, r *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	items, err := s.images(r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &cri.ListImagesResponse{Images: items}, nil
}

// StreamImages is ListImages in parts.
func (s *Server) StreamImages(r *cri.StreamImagesRequest, out grpc.ServerStreamingServer[cri.StreamImagesResponse]) error {
	items, err := s.images(r.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(out, items, func(part []*cri.Image) *cri.StreamImagesResponse {
		return &cri.StreamImagesResponse{Images: part}
	})
}

// RemoveImage removes an image with all its names; none there is a success.
func (s *Server) RemoveImage(ctx context.Context, r *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	if err := checkImage("image", r.GetImage()); err != nil {
		return nil, err
	}
	if err := s.cfg.Images.Remove(ctx, r.GetImage().GetImage()); err != nil {
		return nil, err
	}
	return &cri.RemoveImageResponse{}, nil
}

// ImageFsInfo tells what images, and what containers' writable layers, take on disk. The kubelet decides by it when to
// remove images.
func (s *Server) ImageFsInfo(ctx context.Context, _ *cri.ImageFsInfoRequest) (*cri.ImageFsInfoResponse, error) {
	images, err := s.cfg.Images.Usage()
	if err != nil {
		return nil, err
	}
	containers, err := s.cfg.Runtime.ContainersFsUsage(ctx)
	if err != nil {
		return nil, err
	}
	return &cri.ImageFsInfoResponse{
		ImageFilesystems:     []*cri.FilesystemUsage{toFilesystemUsage(images.At, images.Mountpoint, images.Bytes, images.Inodes)},
		ContainerFilesystems: []*cri.FilesystemUsage{toFilesystemUsage(containers.At, containers.Mountpoint, containers.Bytes, containers.Inodes)},
	}, nil
}
