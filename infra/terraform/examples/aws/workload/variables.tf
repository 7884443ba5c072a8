variable "image" {
  description = "The image of CloudPaxos, with tag or digest, in a registry that the cluster may read."
  type        = string
}

variable "remove_data" {
  description = "Whether destroying removes the data as well."
  type        = bool
  default     = false
}
