variable "region" {
  description = "The region, which has at least three availability zones."
  type        = string
  default     = "eu-central-1"
}

variable "name" {
  description = "The name of the cluster."
  type        = string
  default     = "cloudpaxos"
}

variable "api_cidrs" {
  description = "From which addresses kubectl and the second step come, such as [\"192.0.2.7/32\"]."
  type        = list(string)
}
