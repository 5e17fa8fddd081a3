// A worker's place in the tree: which aggregator it is attached to, if any, and the link to it. Aggregators come and
// go.
#ifndef WUKONG_WORKER_ATTACHMENT_H_
#define WUKONG_WORKER_ATTACHMENT_H_

#include <memory>
#include <string>

#include "proto/wire.pb.h"
#include "runtime/sync/public_copy.h"
#include "runtime/sync/types.h"
#include "runtime/transport/parent_link.h"
#include "worker/mailbox.h"

namespace wukong {

// One thread; what the link's threads bring goes to the mailbox.
class Attachment {
 public:
  // `options` but the address and the first sequence, which differ between parents. `mail` outlives this.
  Attachment(ParentLink::Options options, Mailbox* mail) : options_(std::move(options)), mail_(mail) {}

  // `first`: of the contributions that this parent will get. Detached before.
  void Attach(MemberKey parent, const std::string& address, Sequence first);
  // Afterwards nothing comes by the link any more; what came is in the mailbox, under the link's number.
  void Detach();

  bool attached() const { return link_ != nullptr; }
  // Zero while detached.
  MemberKey parent() const { return parent_; }
  // Of the link that is there; another number while there is none.
  int64_t link_number() const { return link_number_; }

  // Version 0 while detached, and until a whole version has come.
  FollowedParameters::Snapshot snapshot() const {
    return attached() ? link_->parameters().snapshot() : FollowedParameters::Snapshot();
  }
  // Calls use(values, snapshot) with the newest whole version; false when there is none.
  template <typename Use>
  bool With(Use use) const {
    if (!attached()) return false;
    return link_->parameters().With([&](absl::Span<const float> values, const FollowedParameters::Snapshot& snapshot) {
      if (snapshot.version.value() == 0) return false;
      use(values, snapshot);
      return true;
    });
  }
  // snapshot() was looked at.
  void VersionSeen() {
    if (attached()) link_->VersionSeen();
  }
  absl::Status Send(const Manifest& manifest, const ParentPort::Encode& encode) {
    return link_->Send(manifest, encode);
  }
  void Send(const Manifest& manifest, std::shared_ptr<const EncodedVector> payload) {
    link_->Send(manifest, std::move(payload));
  }

  // Of the parent; empty while detached.
  std::string address() const { return attached() ? address_ : std::string(); }
  // How long its parent has not let it follow; 0 while detached.
  absl::Duration away() const { return attached() ? link_->away() : absl::ZeroDuration(); }

  // Over all links.
  void FillUsage(MemberUsage* usage) const;

 private:
  const ParentLink::Options options_;
  Mailbox* const mail_;
  MemberKey parent_;
  std::string address_;
  int64_t link_number_ = 0;
  MemberUsage earlier_;  // Of links that are gone.
  std::unique_ptr<ParentLink> link_;
};

}  // namespace wukong

#endif  // WUKONG_WORKER_ATTACHMENT_H_
