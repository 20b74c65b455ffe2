# A private zone in which the controllers keep the name of the primary. Terraform makes the zone and the first answer, and leaves the
# answer alone from then on.

variable "zone" { type = string }
variable "name" { type = string }
variable "networks" {
  description = "VPC to region."
  type        = map(string)
}
variable "first_address" { type = string }

resource "aws_route53_zone" "this" {
  name = var.zone
  dynamic "vpc" {
    for_each = var.networks
    content {
      vpc_id     = vpc.key
      vpc_region = vpc.value
    }
  }
}

resource "aws_route53_record" "primary" {
  zone_id = aws_route53_zone.this.zone_id
  name    = var.name
  type    = "A"
  ttl     = 5
  records = [var.first_address]
  lifecycle { ignore_changes = [records] }
}

# A private address cannot be probed from outside: the health is the controllers' own metric, as an alarm.
resource "aws_cloudwatch_metric_alarm" "no_primary" {
  alarm_name          = "${var.name}-no-primary"
  namespace           = "Stormglass"
  metric_name         = "stormglass_cluster_health"
  dimensions          = { health = "no_primary" }
  statistic           = "Maximum"
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  period              = 60
  evaluation_periods  = 1
  treat_missing_data  = "breaching"
}

resource "aws_route53_health_check" "primary" {
  type                            = "CLOUDWATCH_METRIC"
  cloudwatch_alarm_name           = aws_cloudwatch_metric_alarm.no_primary.alarm_name
  cloudwatch_alarm_region         = var.networks[keys(var.networks)[0]]
  insufficient_data_health_status = "Unhealthy"
}

output "zone_id" { value = aws_route53_zone.this.zone_id }
output "zone_arn" { value = aws_route53_zone.this.arn }
