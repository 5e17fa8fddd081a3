#include "worker/attachment.h"

#include <utility>

#include "glog/logging.h"

namespace wukong {

void Attachment::Attach(MemberKey parent, const std::string& address, Sequence first) {
  CHECK(!attached());
  parent_ = parent;
  ParentLink::Options options = options_;
  options.address = address_ = address;
  options.parent = parent;
  options.first_sequence = first;
  ParentLink::Callbacks callbacks;
  callbacks.on_version = [mail = mail_] {
    MutexLock lock(mail->mutex);
    mail->version = true;
    mail->changed.NotifyAll();
  };
  callbacks.on_answer = [mail = mail_, link = ++link_number_](Sequence sequence, Verdict verdict,
                                                              const std::string& detail) {
    if (verdict != VERDICT_ACCEPTED) {
      LOG(WARNING) << "contribution " << sequence << " was refused (" << VerdictName(verdict) << "): " << detail;
    }
    MutexLock lock(mail->mutex);
    mail->answers.push_back({link, sequence, verdict});
    mail->changed.NotifyAll();
  };
  callbacks.on_fatal = [mail = mail_](const absl::Status& status) { mail->End(status); };
  link_ = std::make_unique<ParentLink>(options, std::move(callbacks));
}

void Attachment::Detach() {
  if (attached()) link_->Shutdown();
  FillUsage(&earlier_);
  link_.reset();
  parent_ = MemberKey();
  ++link_number_;  // What it brought at the last moment is nobody's answer any more.
}

void Attachment::FillUsage(MemberUsage* usage) const {
  usage->set_payload_bytes_up(earlier_.payload_bytes_up() + (attached() ? link_->payload_bytes_up() : 0));
  usage->set_payload_bytes_down(earlier_.payload_bytes_down() + (attached() ? link_->payload_bytes_down() : 0));
  usage->set_contributions_sent(earlier_.contributions_sent() + (attached() ? link_->contributions_sent() : 0));
}

}  // namespace wukong
